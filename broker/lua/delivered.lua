-- delivered(expected cursor, cursor) -> 1; 0: another one has delivered meanwhile
-- Events up to the cursor have reached the webhook.
-- Keys: webhook.
register('delivered', function(_, argv)
  if redis.call('HGET', K.webhook, 'cursor') ~= argv[1] then return 0 end
  redis.call('HSET', K.webhook, 'cursor', argv[2], 'at', num(now()), 'note', '', 'failures', '0')
  return 1
end)
