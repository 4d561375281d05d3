-- Puts dead letters back into queues, all in one step. Their histories go along, with their deaths behind.
-- KEYS: seq, queues; then those of each queue: ready, delayed, bodies, wake, extras, incidents, dead, dead bodies, dead
-- extras, dead incidents.
-- ARGV: now, how many queues there are to look in (the first ones); then for each letter: its id, and what replaces it:
-- keys, name of the queue, base of the ready score, due time or '', 1, id, body.
-- Answers how many were there.
local FIRST, WIDTH, SIZE = 3, 10, 8
local DEAD, BODIES, EXTRAS, INCIDENTS = 6, 7, 8, 9

local ids = {}
for at = 3, #ARGV, SIZE do ids[#ids + 1] = ARGV[at] end

-- By the keys of a queue, what is put into them.
local moves = {}
local function to_queue(k, name)
  moves[k] = moves[k] or {name = name, ready = {}, delayed = {}, bodies = {}, incidents = {}}
  return moves[k]
end

local function push(at, seq, history)
  local to = to_queue(tonumber(ARGV[at + 1]), ARGV[at + 2])
  local score, due, id = tonumber(ARGV[at + 3]) + seq, tonumber(ARGV[at + 4]), ARGV[at + 6]
  local z = to.ready
  if due and due > now then
    z = to.delayed
    z[#z + 1], z[#z + 2] = due, string.format(PAD, score) .. id
  else
    z[#z + 1], z[#z + 2] = score, id
  end
  to.bodies[#to.bodies + 1], to.bodies[#to.bodies + 2] = id, ARGV[at + 7]
  if history then to.incidents[#to.incidents + 1], to.incidents[#to.incidents + 2] = id, history end
end

local seq = call('INCRBY', KEYS[1], #ids) - #ids
local moved = 0
for k = FIRST, FIRST + (tonumber(ARGV[2]) - 1) * WIDTH, WIDTH do
  if #ids > 0 and call('EXISTS', KEYS[k + DEAD]) == 1 then
    local extras = call('HMGET', KEYS[k + EXTRAS], unpack(ids))
    local there = {}
    for i, text in ipairs(extras) do
      if text and call('ZREM', KEYS[k + DEAD], ids[i]) == 1 then
        local death = string.match(text, '^%d+:%d+:(.+)$')
        local history = call('HGET', KEYS[k + INCIDENTS], ids[i])
        push(3 + (i - 1) * SIZE, seq + i, death and with_line(history, death) or history)
        there[#there + 1] = ids[i]
      end
    end
    if #there > 0 then
      for i = BODIES, INCIDENTS do call('HDEL', KEYS[k + i], unpack(there)) end
      moved = moved + #there
    end
  end
end

local function put(command, key, values)
  if #values > 0 then call(command, key, unpack(values)) end
end

for k, to in pairs(moves) do
  call('SADD', KEYS[2], to.name)
  put('HSET', KEYS[k + 2], to.bodies)
  put('HSET', KEYS[k + 5], to.incidents)
  put('ZADD', KEYS[k], to.ready)
  put('ZADD', KEYS[k + 1], to.delayed)
  call('ZADD', KEYS[k + 3], 0, '1')
end
return moved
