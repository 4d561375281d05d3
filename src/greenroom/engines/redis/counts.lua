-- Counts messages, all at one moment. KEYS: for each queue: ready, delayed, bodies, dead. ARGV: now.
-- Answers for each queue how many are ready, delayed, kept in all, and dead.
local counts = {}
for k = 1, #KEYS, 4 do
  counts[#counts + 1] = {
    call('ZCARD', KEYS[k]), call('ZCARD', KEYS[k + 1]), call('HLEN', KEYS[k + 2]), call('ZCARD', KEYS[k + 3])
  }
end
return counts
