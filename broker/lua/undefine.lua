-- undefine(name, revision, keep s) -> 1, 0 when there is no such revision
-- It serves no new job from now on; it can be looked at for `keep` seconds more. A repeat changes nothing.
-- Keys: definitions_active, definitions_version, definition.
local LOOK_BACK = 1000                         -- one that lies further back serves nothing any more

local function latest_active(name, below)
  for n = below, math.max(1, below - LOOK_BACK + 1), -1 do
    if redis.call('HGET', K.definition(name .. ':' .. num(n)), 'state') == 'ACTIVE' then return num(n) end
  end
end

register('undefine', function(_, argv)
  local name, revision = argv[1], argv[2]
  local key = K.definition(name .. ':' .. revision)
  local state = redis.call('HGET', key, 'state')
  if not state then return 0 end
  if state == 'ACTIVE' then
    redis.call('HSET', key, 'state', 'INACTIVE')
    redis.call('EXPIRE', key, argv[3])
    if redis.call('HGET', K.definitions_active, name) == revision then
      local left = latest_active(name, tonumber(revision) - 1)
      if left then redis.call('HSET', K.definitions_active, name, left)
      else redis.call('HDEL', K.definitions_active, name) end
    end
    local t = redis.call('TIME')
    redis.call('SET', K.definitions_version, t[1] .. '.' .. t[2])
  end
  return 1
end)
