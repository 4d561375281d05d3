-- Claims the first messages of one of Dramatiq's lists, whatever they say of their time.
--
-- KEYS     1 heartbeats  2 list  3 bodies  4 claimed by this owner
-- ARGV     owner, how many
-- Returns  id and body of each

local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000)), ARGV[1])
local ids = redis.call('LRANGE', KEYS[2], 0, tonumber(ARGV[2]) - 1)
redis.call('LTRIM', KEYS[2], #ids, -1)
local claims = {}
for _, id in ipairs(ids) do
  local body = redis.call('HGET', KEYS[3], id)
  if body then
    redis.call('SADD', KEYS[4], id)
    claims[#claims + 1] = id
    claims[#claims + 1] = body
  end
end
return claims
