"""The container engine behind one small protocol. Only `docker` knows Docker; import it by name where it is chosen."""

from .launch import launch
from .logs import Entry, FileLog, FollowLog, LogSource
from .protocol import Bind, ContainerSpec, CreateAgain, Engine, Exit, InitMissing, Listed

__all__ = [
    "Bind",
    "ContainerSpec",
    "CreateAgain",
    "Engine",
    "Entry",
    "Exit",
    "FileLog",
    "FollowLog",
    "InitMissing",
    "Listed",
    "LogSource",
    "launch",
]
