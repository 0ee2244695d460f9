package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/network"

	"fwd/internal/node"
)

// maxTried is how many places are told of: a line's worth.
const maxTried = 6

// notReached is why a machine was not reached, in one line for a person: each place that was tried, and what came of it.
func (d *Daemon) notReached(err error) string {
	if tried := d.triedWords(node.TriedIn(err)); tried != "" {
		return "tried " + tried
	}
	switch {
	case errors.Is(err, node.ErrPathChanged):
		return node.ErrPathChanged.Error()
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "no answer in time"
	case errors.Is(err, node.ErrUnreachable):
		return "no address of it is known"
	case errors.Is(err, network.ErrReset), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection broke off"
	}
	return err.Error()
}

// triedWords: "7.0.0.9:4001 (no answer by UDP, refused by TCP), relay vps (not connected to it)".
func (d *Daemon) triedWords(tried []node.Tried) string {
	var places []string
	came := map[string][]string{} // of each place
	for _, t := range tried {
		place, why := "relay "+d.nameOf(t.Relay), t.Why
		if t.Addr != nil {
			place = hostPort(t.Addr)
		}
		if t.By != "" {
			why += " by " + t.By
		}
		if came[place] == nil {
			places = append(places, place)
		}
		if !slices.Contains(came[place], why) {
			came[place] = append(came[place], why)
		}
	}
	slices.Sort(places)
	var words []string
	for _, place := range places[:min(len(places), maxTried)] {
		slices.Sort(came[place])
		words = append(words, fmt.Sprintf("%s (%s)", place, strings.Join(came[place], ", ")))
	}
	if more := len(places) - maxTried; more > 0 {
		words = append(words, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(words, ", ")
}
