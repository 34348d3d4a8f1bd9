# So that "patronictl list" needs no -c.
export PATRONICTL_CONFIG_FILE=/etc/patroni/conf.d
