// Package leaks finds goroutines that outlive what began them. go.uber.org/goleak gives them half a second, which on a
// busy machine is less than libp2p's need to end; a leak is there for good, so here they have long.
package leaks

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

// limit is how long goroutines may take to end.
const limit = 30 * time.Second

// None fails if goroutines stay that the options do not excuse.
func None(t testing.TB, opts ...goleak.Option) {
	t.Helper()
	if err := find(opts...); err != nil {
		t.Errorf("after %v still: %v", limit, err)
	}
}

// Main runs a package's tests, of which nothing may stay.
func Main(m goleak.TestingM) { goleak.VerifyTestMain(settling{m}) }

// settling is tests that are over when their goroutines are.
type settling struct{ goleak.TestingM }

func (m settling) Run() int {
	code := m.TestingM.Run()
	if code == 0 {
		_ = find() // goleak tells of them
	}
	return code
}

func find(opts ...goleak.Option) (err error) {
	for end := time.Now().Add(limit); ; {
		if err = goleak.Find(opts...); err == nil || time.Now().After(end) {
			return err
		}
	}
}
