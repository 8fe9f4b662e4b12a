"""The whole way on a real model: compress, save, reload in a new process, measure, show."""
