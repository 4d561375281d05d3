-- Gives back what a dead worker of ours had claimed of one of Dramatiq's lists: to its head. What it ran is charged with a
-- crash, and moves into our layout, because Dramatiq's has no place for the count.
--
-- KEYS     1 list  2 bodies  3 claimed by the dead one  4 due times (ours)  5 wake token (ours)  6 sequence numbers  7 queues
--          8 our ready  9 our bodies  10 our extras  11 our incidents
-- ARGV     now_ms or ""; the name of the queue; the base of a ready score; what befell those that it ran; how many they
--          are; their ids; the other ids
-- Returns  how many were charged, how many were not

local charged, others = 0, 0
local ran = tonumber(ARGV[5])
for i = 6, #ARGV do
  local id = ARGV[i]
  local body = call('SREM', KEYS[3], id) == 1 and call('HGET', KEYS[2], id)
  if body and i < 6 + ran then
    call('HDEL', KEYS[2], id)
    call('HSET', KEYS[9], id, body)
    call('HSET', KEYS[10], id, '1:1')
    call('HSET', KEYS[11], id, line(ARGV[4]))
    call('ZADD', KEYS[8], string.format('%.0f', tonumber(ARGV[3]) + call('INCR', KEYS[6])), id)
    call('SADD', KEYS[7], ARGV[2])
    charged = charged + 1
  elseif body then
    call('LPUSH', KEYS[1], id)
    call('ZREM', KEYS[4], id)
    others = others + 1
  end
end
if charged + others > 0 then
  call('ZADD', KEYS[5], 0, '1')
end
return {charged, others}
