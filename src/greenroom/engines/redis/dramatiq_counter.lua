-- A counter of Dramatiq's: adds to it, unless its new value, or the sum of all that are judged together, leaves its
-- bounds. KEYS: the counter, the others. ARGV: amount, low, high, TTL (ms). Answers 1 if it was done.
local call = redis.call
local value = tonumber(call('GET', KEYS[1]) or 0) + ARGV[1]
local judged = value
for i = 2, #KEYS do judged = judged + (call('GET', KEYS[i]) or 0) end
if ARGV[2] ~= '' and judged < tonumber(ARGV[2]) or ARGV[3] ~= '' and judged > tonumber(ARGV[3]) then return 0 end
call('SET', KEYS[1], string.format('%.0f', value), 'PX', ARGV[4])
return 1
