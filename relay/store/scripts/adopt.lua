-- Take over a generation whose reader went before its end was delivered, for one more reader of the same request.
-- KEYS: meta, log. ARGV: the replica where that reader is, lease ms, for how many ms after its end a generation can still
-- be joined, then the replicas that are known to be dead.
-- Answers {what was found, the replica that produces it, the replicas that have readers of it …}:
--   unmade  there is no such stream, or not yet
--   over    it failed, was stopped, was read to its end, or has ended too long ago
--   lost    its producer has not been heard of for a lease
--   read    it may have a reader: the producer has not said that its own has gone, or another replica has some
--   taken   it is the caller's now: others find it read
-- Each replica sees to it that it calls this only without a reader of its own.
local m = redis.call('HMGET', KEYS[1], 'top', 'end', 'ended', 'lease', 'replica', 'orphan', 'taken', 'delivered')
if not m[1] then
  return { 'unmade', '' }
end
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
local last = m[2] and tonumber(m[3]) + ARGV[3]
if m[2] then
  if m[2] ~= 'completed' or ms >= last or redis.call('EXISTS', KEYS[2]) == 0 then
    return { 'over', m[5] }
  end
elseif tonumber(m[4]) < ms then
  return { 'lost', m[5] }
end
if m[8] then
  return { 'over', m[5] }
end
local dead = {}
for i = 4, #ARGV do
  dead[ARGV[i]] = true
end
local answer = { 'read', m[5] }
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local replica = string.sub(fields[i], 1, 2) == 'r:' and string.sub(fields[i], 3)
  if replica and replica ~= ARGV[1] and not dead[replica] and ms - fields[i + 1] < tonumber(ARGV[2]) then
    answer[#answer + 1] = replica
  end
end
if #answer > 2 or tonumber(m[6] or 0) <= tonumber(m[7] or 0) then
  return answer
end
if m[5] == ARGV[1] then
  redis.call('HSET', KEYS[1], 'taken', m[6])
else
  -- Nobody says again that an ended stream has a reader: this one is good until nobody can join any more.
  redis.call('HSET', KEYS[1], 'r:' .. ARGV[1], string.format('%d', last or ms))
  if not m[2] then
    redis.call('HSET', KEYS[1], 'seen', string.format('%d', ms))
  end
end
return { 'taken', m[5] }
