-- reseal(key, field, old, new, …) -> how many were changed
-- What is kept sealed in fields of hashes, or where the field is '' in strings, sealed anew by the caller. What has
-- changed meanwhile, or is gone, stays so.
-- Keys: those given whole; job, definition, schedule, dead, memo.
-- Refused when Redis is out of memory.
register('reseal', function(_, argv)
  local changed = 0
  for i = 1, #argv, 4 do
    local key, field = argv[i], argv[i + 1]
    if field == '' then
      if redis.call('GET', key) == argv[i + 2] then
        redis.call('SET', key, argv[i + 3], 'KEEPTTL')
        changed = changed + 1
      end
    elseif redis.call('HGET', key, field) == argv[i + 2] then
      redis.call('HSET', key, field, argv[i + 3])
      changed = changed + 1
    end
  end
  return changed
end, {})
