"""The command line, one file a command.

It stands beside the library and not inside it, because importing anything inside ``fewfold`` first imports torch and
transformers: here ``fewfold --help`` answers at once, and their messages can be silenced before they are written.
"""
