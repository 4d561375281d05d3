-- Lets a lease last from now, and says what its owner runs: whoever takes it for dead charges that.
-- KEYS: leases, running. ARGV: now, owner, lease (ms), marks with spaces between them.
-- Answers 1, or 0 for an owner that was taken for dead.
if tonumber(call('ZSCORE', KEYS[1], ARGV[2]) or 0) == 0 then return 0 end
call('PERSIST', KEYS[1]) -- a first write that takes no memory, as in exchange.lua
call('ZADD', KEYS[1], now + tonumber(ARGV[3]), ARGV[2])
if ARGV[4] == '' then call('HDEL', KEYS[2], ARGV[2]) else call('HSET', KEYS[2], ARGV[2], ARGV[4]) end
return 1
