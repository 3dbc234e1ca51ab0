"""Lets the tests of this folder import `tiny_chats`, and that the data tests'."""

import pathlib
import sys

_HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "data")]
