"""Engines that are HTTP servers in child processes of ours: how one is started, watched and ended.

A driver says what is its own: the command line (its plan), when the engine is ready, what its log and its health mean.
Planning needs `words` alone, so nothing heavy is imported here.
"""
