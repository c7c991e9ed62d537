-- Note how often a stream's own replica was left without a reader of it (`orphan`), and up to which time one has come
-- again (`taken`). Both only rise: a command that is executed late, or twice, takes nothing back.
-- KEYS: meta. ARGV: orphan, taken. Answers 1, 0 where there is no such stream: it comes with its making then.
local m = redis.call('HMGET', KEYS[1], 'top', 'orphan', 'taken')
if not m[1] then
  return 0
end
for i, field in ipairs({ 'orphan', 'taken' }) do
  if tonumber(ARGV[i]) >= tonumber(m[i + 1] or 0) then
    redis.call('HSET', KEYS[1], field, ARGV[i])
  end
end
return 1
