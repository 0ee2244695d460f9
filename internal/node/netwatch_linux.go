package node

import (
	"bufio"
	"context"
	"errors"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// interfaceChanges gets a token whenever the kernel tells of a change of links, addresses or routes, until
// ctx ends. Nil: it does not tell. done counts the goroutine that listens.
func interfaceChanges(ctx context.Context, done *sync.WaitGroup) <-chan struct{} {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil
	}
	groups := uint32(unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV4_ROUTE)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil
	}
	file := os.NewFile(uintptr(fd), "netlink")
	changes := make(chan struct{}, 1)
	context.AfterFunc(ctx, func() { file.Close() })
	done.Go(func() { // ends with the file, which ends with ctx
		buf := make([]byte, 8<<10) // what does not fit is lost, and matters not: the news is that there is some
		for {
			if _, err := file.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			select {
			case changes <- struct{}{}:
			default:
			}
		}
	})
	return changes
}

// gateways are the IPv4 default routes, by interface and router: another router may give us the same
// address as the one before.
func gateways() []string {
	file, err := os.Open("/proc/net/route")
	if err != nil {
		return nil
	}
	defer file.Close()
	var out []string
	for lines := bufio.NewScanner(file); lines.Scan(); {
		// Iface Destination Gateway Flags RefCnt Use Metric Mask …
		if f := strings.Fields(lines.Text()); len(f) > 7 && f[1] == "00000000" && f[7] == "00000000" {
			out = append(out, f[0]+" "+f[2])
		}
	}
	return out
}
