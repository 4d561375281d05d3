-- Where to go on in a sorted set whose members with the same score follow each other as text.

-- Whether Redis has `a` before `b`: by their bytes, whatever the locale is.
local function is_before(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x < y end
  end
  return #a < #b
end

-- The first index whose score is `score` or more, and whose member comes after `member` if it is just that score; '' comes
-- before all. What stood there may be gone.
local function index_from(key, score, member)
  local low = call('ZCOUNT', key, '-inf', '(' .. score)
  local high = low + call('ZCOUNT', key, score, score)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if is_before(member, call('ZRANGE', key, middle, middle)[1]) then high = middle else low = middle + 1 end
  end
  return low
end
