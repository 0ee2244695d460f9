package main

import (
	"encoding/json"
	"testing"
)

// Whatever export has ever printed can be restored.
func TestABackupIsReadAsItWasPrinted(t *testing.T) {
	const backup = "-----BEGIN FWD OWNER BACKUP-----\nAAAA\n-----END FWD OWNER BACKUP-----\n"
	for _, printed := range []any{exported{Backup: backup}, []byte(backup)} {
		line, err := json.Marshal(printed)
		if err != nil {
			t.Fatal(err)
		}
		if got := backupIn(string(line)); string(got) != backup {
			t.Errorf("%s: %q", line, got)
		}
	}
	for _, text := range []string{backup, "", "{}", "something else", `"%%"`} {
		if got := backupIn(text); string(got) != text && len(got) > 0 {
			t.Errorf("%q: %q", text, got)
		}
	}
}
