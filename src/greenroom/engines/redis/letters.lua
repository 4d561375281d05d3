-- Looks dead letters up by their ids. KEYS: for each queue: dead, dead bodies, dead extras, dead incidents.
-- ARGV: now, ids. Answers as dead.lua, and with the history behind.
local found = {}
for k = 1, #KEYS, 4 do
  if #ARGV > 1 and call('EXISTS', KEYS[k]) == 1 then
    for i, extras in ipairs(call('HMGET', KEYS[k + 2], unpack(ARGV, 2))) do
      local id = ARGV[i + 1]
      local died = extras and call('ZSCORE', KEYS[k], id)
      if died then
        local body, history = call('HGET', KEYS[k + 1], id) or '', call('HGET', KEYS[k + 3], id) or ''
        found[#found + 1] = {(k - 1) / 4, id, string.format('%.0f', tonumber(died)), body, extras, history}
      end
    end
  end
end
return found
