-- What the scripts share. ARGV[1] is the time in milliseconds, or empty: then it is the server's. After a '@' it is the
-- caller's: then the server's counts, and due times are put forward or back by `skew`, which is how much the caller's
-- clock is wrong. A little of that is the way of the command, and is left out.
local call = redis.call
local now, skew = tonumber(ARGV[1]), 0
if not now then
  local t = call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
  local theirs = string.match(ARGV[1] or '', '^@(%d+)$')
  if theirs and math.abs(now - theirs) > 200 then skew = now - theirs end
end
