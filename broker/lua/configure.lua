-- configure(configuration (JSON), policies (JSON: queue -> its policy as JSON text)) -> 1
-- The yard's configuration, and what of it the claim reads (see policies.lua). Shares and what they have used stay.
-- Keys: config, policies, gates, the shares'; channel wake.
-- Refused when Redis is out of memory.
local function policy_changed(queue)
  local fair = fair_policy(queue)
  rescore(queue, fair, now())
  redis.call('DEL', K.share_kin(queue))
  for _, share in ipairs(redis.call('HKEYS', K.share_open(queue))) do kin(queue, fair, share, 1) end
  gate_opened(queue)
end

register('configure', function(_, argv)
  local told, flat, changed = cjson.decode(argv[2]), redis.call('HGETALL', K.policies), {}
  redis.call('SET', K.config, argv[1])
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
  return 1
end, {})
