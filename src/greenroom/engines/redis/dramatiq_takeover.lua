-- Gives back what a process had claimed of one of Dramatiq's queues when it died: to the end of the queue, as Dramatiq
-- does. Does nothing if the process has given a sign of life meanwhile.
--
-- KEYS     1 heartbeats  2 list  3 bodies  4 claimed by the dead one  5 due times (ours)  6 wake token (ours)
-- ARGV     the dead one, its last heartbeat as it was seen, how many at the most, "1" for a delayed list
-- Returns  how many there were, -1 if it lives

local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if score and tonumber(score) ~= tonumber(ARGV[2]) then
  return -1
end
local ids = redis.call('SPOP', KEYS[4], tonumber(ARGV[3]))
for _, id in ipairs(ids) do
  if redis.call('HEXISTS', KEYS[3], id) == 1 then
    redis.call('RPUSH', KEYS[2], id)
    if ARGV[4] == '1' then
      redis.call('ZREM', KEYS[5], id)  -- whoever claimed it may have known nothing of its time
    end
  end
end
if #ids > 0 then
  redis.call('ZADD', KEYS[6], 0, '1')
end
return #ids
