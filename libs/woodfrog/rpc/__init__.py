"""Servers, channels and the process frame that every service shares."""

from woodfrog.rpc.channel import call, open_channel, stream
from woodfrog.rpc.process import run
from woodfrog.rpc.server import Outside, Server, serving

__all__ = ["Outside", "Server", "call", "open_channel", "run", "serving", "stream"]
