-- configure(expected or '', configuration (JSON), policies (JSON: queue -> its policy as JSON text), waits (JSON object
--   "<queue> <environment>" -> ms), environments of spot machines (JSON list)) -> 1; 0: what stands there is not what was expected, and stays
-- The yard's configuration, and what of it the claim reads: see policies.lua, and how long nodes of later environments
-- leave a job to those of earlier ones. Shares and what they have used stay.
-- Keys: config, policies, gates, overflow, spot, the shares'; channels wake, duty, control.
-- Refused when Redis is out of memory.
local function policy_changed(queue)
  local fair = fair_policy(queue)
  rescore(queue, fair, now())
  redis.call('DEL', K.share_kin(queue))
  for _, share in ipairs(redis.call('HKEYS', K.share_open(queue))) do kin(queue, fair, share, 1) end
end

local function keep_waits(waits)
  local fields = {}
  for k, v in pairs(waits) do fields[#fields + 1] = k; fields[#fields + 1] = v end
  redis.call('DEL', K.overflow)
  if #fields > 0 then redis.call('HSET', K.overflow, unpack(fields)) end
end

register('configure', function(_, argv)
  if argv[1] ~= '' and redis.call('GET', K.config) ~= argv[1] then return 0 end
  local told, flat, changed = cjson.decode(argv[3]), redis.call('HGETALL', K.policies), {}
  redis.call('SET', K.config, argv[2])
  keep_waits(cjson.decode(argv[4]))
  redis.call('DEL', K.spot)
  for _, environment in ipairs(cjson.decode(argv[5])) do redis.call('SADD', K.spot, environment) end
  local old = {}
  for i = 1, #flat, 2 do old[flat[i]] = flat[i + 1] end
  for queue, text in pairs(told) do
    if old[queue] ~= text then
      redis.call('HSET', K.policies, queue, text)
      changed[#changed + 1] = queue
    end
  end
  for queue in pairs(old) do
    if not told[queue] then
      redis.call('HDEL', K.policies, queue)
      changed[#changed + 1] = queue
    end
  end
  for _, queue in ipairs(changed) do policy_changed(queue) end
  gate_opened('')                              -- a limit is another one, or machines are no spot machines any more
  redis.call('PUBLISH', K.duty, 'config')
  keep_events(cjson.decode(argv[2]).events)
  redis.call('PUBLISH', K.control, '* config')
  return 1
end, {})
