"""The agent that runs inside every kavach box, and the host's end of the channel to it."""
