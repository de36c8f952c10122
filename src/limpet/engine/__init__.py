"""The engine: staging, writing, reading and cleaning up, on a loop and threads of its own."""
