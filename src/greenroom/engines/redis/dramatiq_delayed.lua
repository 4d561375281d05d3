-- Learns when the messages of one of Dramatiq's delayed lists are due: the list has no order, and only the bodies know.
-- The messages stay where they are.
--
-- KEYS     1 delayed list  2 its bodies  3 due times (ours)
-- ARGV     how many of the last ids to leave out, how many to look at, how many bytes of bodies to return;
--          then id and due_ms of what has been learned.
-- Returns  how long the list is, how many ids were looked at, and id and body of those whose due time is not known.

for i = 4, #ARGV, 2 do
  if redis.call('HEXISTS', KEYS[2], ARGV[i]) == 1 then
    redis.call('ZADD', KEYS[3], ARGV[i + 1], ARGV[i])
  end
end

local after, window, room = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local ids = redis.call('LRANGE', KEYS[1], -(after + window), -(after + 1))
local unknown = {}
local seen = 0
for i = #ids, 1, -1 do
  if room <= 0 then
    break
  end
  seen = seen + 1
  if not redis.call('ZSCORE', KEYS[3], ids[i]) then
    local body = redis.call('HGET', KEYS[2], ids[i])
    if body then
      unknown[#unknown + 1] = ids[i]
      unknown[#unknown + 1] = body
      room = room - #body
    else
      redis.call('LREM', KEYS[1], -1, ids[i])  -- a stray id, without a message
    end
  end
end
return {redis.call('LLEN', KEYS[1]), seen, unknown}
