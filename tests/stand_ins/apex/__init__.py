"""A stand-in for the two functions of Apex that this project calls, in pure torch."""
