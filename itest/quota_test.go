//go:build linux

package itest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

// Two homes that can only talk by the relay, whose month is over soon.
func TestARelayWhoseQuotaIsUsedUpSaysSo(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	w := &world{t: t, lab: l, homes: [2]*lab.Home{l.Home("a", lab.Symmetric, slow()), l.Home("b", lab.Symmetric, slow())}}
	w.relay = fwdtest.New(t, l.Public("relay", "7.0.0.10"))

	config := "name = \"relay\"\n[relay]\nmonthly = \"1MiB\"\n"
	if err := os.WriteFile(filepath.Join(w.relay.Home, "fwd.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	w.relaying = w.relay.Start("up")
	w.populate(w.homes[0].Host("nas"), w.homes[1].Host("laptop"))
	connect, local := w.connect()
	go func() { // ends with the laptop's daemon
		if _, err := w.data.TransferFrom(w.laptop.Host, local, fwdtest.Load{Up: 8 * mib}); err == nil {
			t.Error("more than the quota was relayed")
		}
	}()
	w.relay.WaitStatus("a warning of the quota", func(s fwdtest.Status) bool {
		return strings.Contains(strings.Join(s.Warnings, " "), "quota-spent")
	})
	connect.Interrupt()
	r := w.laptop.Run("connect", "data", "127.0.0.1:2223", "--timeout", "20s")
	if r.Code != 6 {
		t.Errorf("exit %d, want 6", r.Code)
	}
	contains(t, r.Stderr, "quota for this month is used up")
	contains(t, r.Stderr, "relay relay refuses")
}
