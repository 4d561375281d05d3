-- Shows messages of a queue as they stand at one moment. Changes nothing.
-- KEYS: ready, delayed, bodies, extras, incidents; then what each owner has claimed.
-- ARGV: now, how many at most, after how many bytes of bodies to end; then for each state 'no' to leave it out, or where
-- to go on: the ready score of the claimed and of the ready ones ('' for the first), due time and ready score of the
-- delayed ones.
-- Answers for each message: rank of its state, due time or '', ready score, id, body, extras, last incident, owner.
local most, room = tonumber(ARGV[2]), tonumber(ARGV[3])
local has_extras, has_incidents = call('EXISTS', KEYS[4]) == 1, call('EXISTS', KEYS[5]) == 1
local found = {}

-- False when the page is full.
local function show(rank, due, score, id, owner)
  if #found == most or room <= 0 then return false end
  local body = call('HGET', KEYS[3], id) or ''
  local extras = has_extras and call('HGET', KEYS[4], id) or ''
  local history = has_incidents and call('HGET', KEYS[5], id)
  local last = history and string.match(history, '[^\n]*$') or ''
  found[#found + 1] = {rank, due, score, id, body, extras, last, owner}
  room = room - #body
  return true
end

local function show_claimed(after)
  local claimed = {}
  for k = 6, #KEYS do
    local held = call('HGETALL', KEYS[k])
    for i = 1, #held, 2 do
      if tonumber(held[i + 1]) > after then claimed[#claimed + 1] = {tonumber(held[i + 1]), held[i + 1], held[i], k - 6} end
    end
  end
  table.sort(claimed, function(a, b) return a[1] < b[1] end)
  for _, c in ipairs(claimed) do
    if not show(0, '', c[2], c[3], c[4]) then return end
  end
end

local function show_ready(after)
  local ready = call('ZRANGEBYSCORE', KEYS[1], after, '+inf', 'WITHSCORES', 'LIMIT', 0, most - #found)
  for i = 1, #ready, 2 do
    if not show(1, '', ready[i + 1], ready[i], -1) then return end
  end
end

local function show_delayed(due, score)
  local from = due == '' and 0 or index_from(KEYS[2], due, score .. '\255')
  local delayed = call('ZRANGE', KEYS[2], from, from + most - #found - 1, 'WITHSCORES')
  for i = 1, #delayed, 2 do
    if not show(2, delayed[i + 1], string.sub(delayed[i], 1, 16), string.sub(delayed[i], 17), -1) then return end
  end
end

if ARGV[4] ~= 'no' then show_claimed(tonumber(ARGV[4]) or -1) end
if ARGV[5] ~= 'no' and #found < most then show_ready(ARGV[5] == '' and '-inf' or '(' .. ARGV[5]) end
if ARGV[6] ~= 'no' and #found < most then show_delayed(ARGV[6], ARGV[7]) end
return found
