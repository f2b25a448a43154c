#!/bin/sh
# Takes away what a private engine leaves: mounts below its folder, the folder, its links. Usage: sh sweep.sh DIR LINK-PREFIX
dir=$1 prefix=$2
case $dir in /tmp/nspool-test-*/*) ;; *) echo "not a test engine's folder: $dir" >&2; exit 1 ;; esac
# Longest first, so that what is mounted inside another mount goes before it.
awk -v dir="$dir/" 'index($2, dir) == 1 { print $2 }' /proc/self/mounts | sort -r | while read -r mount; do umount -l "$mount"; done
for link in /sys/class/net/"$prefix"*; do
    [ -e "$link" ] && ip link del "$(basename "$link")"
done
rm -rf --one-file-system "$dir"
