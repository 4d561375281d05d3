-- Deletes dead letters. KEYS: for each queue: dead, dead bodies, dead extras, dead incidents. ARGV: now, ids.
-- Answers how many of them were there.
local dropped = 0
for k = 1, #KEYS, 4 do
  dropped = dropped + call('ZREM', KEYS[k], unpack(ARGV, 2))
  for i = k + 1, k + 3 do call('HDEL', KEYS[i], unpack(ARGV, 2)) end
end
return dropped
