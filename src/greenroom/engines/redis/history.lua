-- What befell a message: one incident a line, each with its time before it; at most 25 are kept, the last ones.
local function line(incident) return string.format('%.0f', now) .. ':' .. incident end

local function with_line(history, last)
  if not history then return last end
  local _, n = string.gsub(history, '\n', '\n')
  if n >= 24 then history = string.gsub(history, '^[^\n]*\n', '', 1) end
  return history .. '\n' .. last
end

-- A history with one more incident, which is of now.
local function longer(history, incident) return with_line(history, line(incident)) end
