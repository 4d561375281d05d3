-- Pushes one message that is not delayed. A repetition does nothing while the message is there.
-- KEYS: bodies, ready, wake, seq, queues. ARGV: id, body, base of the ready score, name of the queue.
local call = redis.call
if call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 1 then
  call('ZADD', KEYS[2], tonumber(ARGV[3]) + call('INCR', KEYS[4]), ARGV[1])
  call('ZADD', KEYS[3], 0, '1')
  if call('HLEN', KEYS[1]) == 1 then call('SADD', KEYS[5], ARGV[4]) end
end
