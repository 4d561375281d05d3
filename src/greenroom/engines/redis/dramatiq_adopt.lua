-- Takes messages that an owner has claimed of Dramatiq's layout over into ours, where the same owner has claimed them.
-- If the owner was taken for dead meanwhile they are given back instead.
--
-- KEYS     1 leases  2 sequence numbers  3 queues; then for each message: Dramatiq's list, its bodies, what the owner has claimed of it;
--          our bodies, what the owner has claimed of ours
-- ARGV     the owner's id here, the base of a ready score, then the id of each message and the name of its queue
-- Returns  for each message whether it is ours now

local lives = redis.call('ZSCORE', KEYS[1], ARGV[1])
local adopted = {}
for i = 1, (#ARGV - 2) / 2 do
  local id, k = ARGV[2 * i + 1], 5 * i - 1
  local body = redis.call('SREM', KEYS[k + 2], id) == 1 and redis.call('HGET', KEYS[k + 1], id)
  adopted[i] = 0
  if body and lives then
    redis.call('HSET', KEYS[k + 3], id, body)
    redis.call('SADD', KEYS[3], ARGV[2 * i + 2])
    redis.call('HSET', KEYS[k + 4], id, string.format('%.0f', tonumber(ARGV[2]) + redis.call('INCR', KEYS[2])))
    redis.call('HDEL', KEYS[k + 1], id)
    adopted[i] = 1
  elseif body then
    redis.call('LPUSH', KEYS[k], id)
  end
end
return adopted
