"""Images as states: pictures to codes and back, frames of folders and videos, codes on disk and in prompts."""
