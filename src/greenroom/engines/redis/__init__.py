"""The engine on a Redis or Valkey server: keys, Lua scripts, and connections that are ours alone."""
