"""Parameters, bytes, memory, work, time and fidelity of any model: pure functions that change nothing."""
