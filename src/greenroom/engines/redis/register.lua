-- Puts an owner down, or says anew what is known of it.
-- KEYS: owners, leases. ARGV: now, owner, what is known of it, lease (ms), 1 for a new one.
-- Answers 1, or 0 for an owner that was taken for dead.
if ARGV[5] ~= '1' and tonumber(call('ZSCORE', KEYS[2], ARGV[2]) or 0) == 0 then return 0 end
call('PERSIST', KEYS[1]) -- a first write that takes no memory, as in exchange.lua
call('HSET', KEYS[1], ARGV[2], ARGV[3])
call('ZADD', KEYS[2], now + tonumber(ARGV[4]), ARGV[2])
return 1
