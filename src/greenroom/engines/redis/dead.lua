-- Shows dead letters, the newest first. Changes nothing.
-- KEYS: for each queue: dead, dead bodies, dead extras. ARGV: now, how many at most, after how many bytes of bodies to
-- end, and where to go on: time of death and id ('' for the newest).
-- Answers for each letter: the place of its queue, id, time of death, body, extras.
local most, room, died, id = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]

-- How many letters of a queue come before the place, so that they are still to be shown.
local function count_left(key)
  if died == '' then return call('ZCARD', key) end
  local n = index_from(key, died, id)
  if n > 0 and call('ZRANGE', key, n - 1, n - 1)[1] == id then n = n - 1 end
  return n
end

local queues = {}
for k = 1, #KEYS, 3 do
  local n = count_left(KEYS[k])
  if n > 0 and most > 0 then
    local z = call('ZRANGE', KEYS[k], math.max(0, n - most), n - 1, 'WITHSCORES')
    queues[#queues + 1] = {k = k, letters = z, at = #z, died = tonumber(z[#z])}
  end
end

local function newest()
  local best
  for _, q in ipairs(queues) do
    if q.at > 0 then
      if not best or q.died > best.died
        or (q.died == best.died and is_before(best.letters[best.at - 1], q.letters[q.at - 1])) then
        best = q
      end
    end
  end
  return best
end

local found = {}
while #found < most and room > 0 do
  local q = newest()
  if not q then break end
  local letter = q.letters[q.at - 1]
  local body = call('HGET', KEYS[q.k + 1], letter) or ''
  local extras = call('HGET', KEYS[q.k + 2], letter) or ''
  found[#found + 1] = {(q.k - 1) / 3, letter, string.format('%.0f', q.died), body, extras}
  room = room - #body
  q.at = q.at - 2
  q.died = tonumber(q.letters[q.at])
end
return found
