-- Takes dead letters away from one of Dramatiq's queues, and puts messages into it in their place.
--
-- KEYS     1 dead  2 dead bodies  3 list  4 bodies  5 wake token (ours)
-- ARGV     the ids; behind each "" or the id of what replaces it, and its body
-- Returns  how many there were

local count = 0
for i = 1, #ARGV, 3 do
  if redis.call('ZREM', KEYS[1], ARGV[i]) == 1 then
    redis.call('HDEL', KEYS[2], ARGV[i])
    count = count + 1
    if ARGV[i + 1] ~= '' then
      redis.call('HSET', KEYS[4], ARGV[i + 1], ARGV[i + 2])
      redis.call('RPUSH', KEYS[3], ARGV[i + 1])
      redis.call('ZADD', KEYS[5], 0, '1')
    end
  end
end
return count
