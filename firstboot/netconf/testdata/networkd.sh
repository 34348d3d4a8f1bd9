# Runs systemd-networkd in the network and mount namespaces that the caller has
# made, on the files in $1, with the veth cards named in $2. Waits until the
# command in $3 succeeds, then prints what the kernel has.
set -e
# Without udev, networkd waits for it, unless /sys is read-only as in a container.
mount -t sysfs -o ro sysfs /sys
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp /run/files
cp "$1"/* /run/files
mkdir -p /run/systemd/network
mount --bind /run/files /run/systemd/network
# It drops its rights to this user. In a user namespace there is no other than 0.
printf 'root:x:0:0::/:/bin/sh\nsystemd-network:x:0:0::/:/bin/sh\n' >/run/passwd
printf 'root:x:0:\nsystemd-network:x:0:\n' >/run/group
mount --bind /run/passwd /etc/passwd
mount --bind /run/group /etc/group
for card in $2; do
	ip link add "$card" type veth peer name "p-$card"
	ip link set "p-$card" up
done
ip link set lo up
networkd=/usr/lib/systemd/systemd-networkd
[ -x $networkd ] || networkd=/lib/systemd/systemd-networkd
$networkd 2>&1 &
pid=$!
i=0
until sh -c "$3" >/dev/null 2>&1; do
	i=$((i + 1))
	if [ $i -gt 600 ]; then
		echo "NEVER: $3"
		break
	fi
	sleep 0.1
done
echo "== kernel"
ip -d address
ip route show table all
ip -6 route show table all
ip rule
kill $pid
wait $pid || true
