package daemon

import (
	"context"
	"net"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"fwd/forward"
	"fwd/forward/session"
)

// A service may be a range of ports: one name, one list of who may use it, one forward.
// Its sessions say which port they are for by its place: "web+3" is the one three after
// the first, so that neither end needs to know the other's numbers. The name alone is
// the first.

func portWord(service string, i int) string {
	if i == 0 {
		return service
	}
	return service + "+" + strconv.Itoa(i)
}

// splitPort is a session's service and the place of its port; -1: it is not as portWord
// writes it. Traffic is counted by the word, so each port has one.
func splitPort(word string) (service string, i int) {
	service, place, ok := strings.Cut(word, "+")
	if !ok {
		return word, 0
	}
	n, err := strconv.ParseUint(place, 10, 16)
	if err != nil || portWord(service, int(n)) != word {
		return service, -1
	}
	return service, int(n)
}

// whole is a session's service without the port.
func whole(word string) string {
	service, _ := splitPort(word)
	return service
}

// wholeTraffic counts a range's ports together.
func wholeTraffic(list []session.Traffic) []session.Traffic {
	at := map[trafficKey]int{}
	var sums []session.Traffic
	for _, t := range list {
		t.Service = whole(t.Service)
		k := trafficKey{t.Peer, t.Service, t.Role}
		i, ok := at[k]
		if !ok {
			at[k] = len(sums)
			sums = append(sums, t)
			continue
		}
		sums[i].Opened += t.Opened
		sums[i].Sent += t.Sent
		sums[i].Received += t.Received
	}
	return sums
}

// rangeName is a local address as it is told: the first port's, and the last port.
func rangeName(first string, ports int) string {
	host, port, err := net.SplitHostPort(first)
	n, bad := strconv.Atoi(port)
	if ports == 1 || err != nil || bad != nil {
		return first
	}
	return net.JoinHostPort(host, port+"-"+strconv.Itoa(n+ports-1))
}

// listenTCP opens each port of a local address, and listenUDP for datagrams.
func listenTCP(at forward.Local) ([]net.Listener, error) {
	return listenEach(at, forward.Local.Listen)
}

func listenUDP(at forward.Local) ([]*net.UDPConn, error) {
	return listenEach(at, forward.Local.ListenUDP)
}

func listenEach[T interface{ Close() error }](at forward.Local, open func(forward.Local) (T, error)) ([]T, error) {
	var list []T
	for i := range at.Ports() {
		one, err := open(at.At(i))
		if err != nil {
			closeAll(list)
			return nil, err
		}
		list = append(list, one)
	}
	return list, nil
}

func closeAll[T interface{ Close() error }](list []T) {
	for _, one := range list {
		one.Close()
	}
}

// serveEach serves all ports until ctx ends, or one fails.
func serveEach[T any](ctx context.Context, list []T, serve func(ctx context.Context, i int, one T) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for i, one := range list {
		g.Go(func() error { return serve(ctx, i, one) })
	}
	return g.Wait()
}
