-- How messages are pushed, for scripts that do. They come as runs: neighbours of one queue, priority and due time.
-- A queue is named by where its keys begin in KEYS: ready, delayed, bodies, wake; `names` is where the set of queues is.
local PAD = '%016.0f'

-- Counts from `x` on, as texts: several times as fast as having each number written.
local DIGITS = {[0] = '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'}
local function count_from(x)
  local digit = x % 10
  local tens = (x - digit) / 10
  local prefix = string.format('%.0f', tens)
  return function()
    if digit == 10 then
      tens, digit = tens + 1, 0
      prefix = string.format('%.0f', tens)
    end
    digit = digit + 1
    return prefix .. DIGITS[digit - 1]
  end
end

-- The run that begins at ARGV[at] is: keys, name, base, due ('' for now), count, then id and body of each. `seq` is the
-- sequence number of its first message. Returns where the next one begins. What is there already stays as it is: an
-- answer was lost, and its sender asks again.
local function push_run(at, seq, names)
  local k, name, base = tonumber(ARGV[at]), ARGV[at + 1], tonumber(ARGV[at + 2])
  local due, n = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  due = due and due + skew
  local first, last = at + 5, at + 4 + 2 * n
  local is_late, there = due and due > now, {}
  if call('HEXISTS', KEYS[k + 2], ARGV[first]) == 1 then
    for i = first, last, 2 do there[ARGV[i]] = call('HEXISTS', KEYS[k + 2], ARGV[i]) == 1 end
  end
  if call('HSET', KEYS[k + 2], unpack(ARGV, first, last)) == call('HLEN', KEYS[k + 2]) then
    call('SADD', KEYS[names], name)
  end
  local z, text = {}, count_from(base + seq)
  for i = first, last, 2 do
    local id, score = ARGV[i], text()
    if not there[id] then
      z[#z + 1] = is_late and due or score
      z[#z + 1] = is_late and string.format(PAD, score) .. id or id
    end
  end
  if #z == 0 then return last + 1 end
  if not is_late then
    call('ZADD', KEYS[k], unpack(z))
    call('ZADD', KEYS[k + 3], 0, '1')
  else
    local head = call('ZRANGE', KEYS[k + 1], 0, 0, 'WITHSCORES')[2]
    call('ZADD', KEYS[k + 1], unpack(z))
    if not head or due < tonumber(head) then call('ZADD', KEYS[k + 3], 0, '1') end
  end
  return last + 1
end
