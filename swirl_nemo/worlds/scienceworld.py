class ScienceWorld:
    name = "scienceworld"
