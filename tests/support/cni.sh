#!/bin/sh
# A CNI plugin that does what the name says by which it is called. It writes down each call in the folder of plugins.
set -eu

name=${0##*/}
input=$(cat)
printf '%s %s %s %s %s\n' "$name" "$CNI_COMMAND" "$CNI_CONTAINERID" "$CNI_IFNAME" "$input" >>"$CNI_PATH/calls"

error() {
  printf '{"cniVersion":"1.0.0","code":%s,"msg":"%s","details":"from a test"}' "$1" "$2"
  exit 1
}

inside() { nsenter --net="$CNI_NETNS" sh -euc "$1"; }

# result ADDRESS
result() {
  printf '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"%s"}],"ips":[{"interface":0,"address":"%s"}]}' "$CNI_NETNS" "$1"
}

# The chain's result so far, which is the part before the type.
previous() { printf '%s' "$input" | sed -n 's/.*"prevResult":\(.*\),"type":.*/\1/p'; }

link() { inside "ip link add eth0 type veth peer name peer0; ip addr add $1 dev eth0; ip link set eth0 up"; }

add() {
  case $name in
    good) link 10.9.8.7/24 && result 10.9.8.7/24 ;;
    lies) link 10.9.8.6/24 && result 10.9.8.7/24 ;;
    passes | fails-del | fails-check) previous ;;
    fails) error 100 "no way" ;;
    grumbles) echo "out of luck" >&2 && exit 3 ;;
    hangs)
      # A child that does not hear of it, with the plugin's pipes, until the test's folder goes.
      sh -c 'trap "" TERM HUP; echo $$ >"$1/child"; while [ -e "$1/child" ]; do sleep 1; done' - "$CNI_PATH" &
      wait
      ;;
    leaves) link 10.9.8.7/24 && result 10.9.8.7/24 && { sleep 1000 & echo $! >"$CNI_PATH/child"; } ;;
    nonsense) echo "all is well" ;;
    other-version) result 10.9.8.7/24 | sed 's/1.0.0/0.4.0/' ;;
    floods) head -c 100000000 /dev/zero ;;
  esac
}

case "$CNI_COMMAND-$name" in
  ADD-*) add ;;
  DEL-fails-del) error 100 "not now" ;;
  DEL-good | DEL-lies) if [ -n "$CNI_NETNS" ]; then inside "ip link del eth0 2>/dev/null || true"; fi ;;
  CHECK-fails-check) error 7 "it is another one" ;;
esac
