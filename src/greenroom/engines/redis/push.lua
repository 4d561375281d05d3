-- Pushes messages, all or none. KEYS: seq, queues, then those of each queue. ARGV: now, how many messages, how many runs,
-- the runs; then what the store does.
local missing = store and store.look_ahead()
if missing then return missing end
local seq = call('INCRBY', KEYS[1], ARGV[2]) - ARGV[2] + 1
local at = 4
for _ = 1, tonumber(ARGV[3]) do
  local n = tonumber(ARGV[at + 4])
  at = push_run(at, seq, 2)
  seq = seq + n
end
if store then
  store.apply(at)
  store.tell()
end
