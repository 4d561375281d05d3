-- Deletes some of the dead letters of a queue. KEYS: dead, dead bodies, dead extras, dead incidents.
-- ARGV: now, the last time of death that goes or '' for now, how many at most. Answers how many, and that time.
local last = ARGV[2] == '' and string.format('%.0f', now) or ARGV[2]
local ids = call('ZRANGEBYSCORE', KEYS[1], '-inf', last, 'LIMIT', 0, tonumber(ARGV[3]))
if #ids > 0 then
  call('ZREM', KEYS[1], unpack(ids))
  for k = 2, 4 do call('HDEL', KEYS[k], unpack(ids)) end
end
return {#ids, last}
