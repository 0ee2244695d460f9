package daemon

import (
	"os"
	"path/filepath"
	"testing"
)

func TestStateOutlivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon")
	s, err := openState(path)
	if err != nil {
		t.Fatal(err)
	}
	err = s.change(func(f *stateFile) {
		f.Port = 20001
		f.Denied["nas"] = append(f.Denied["nas"], "phone")
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err = openState(path)
	if err != nil {
		t.Fatal(err)
	}
	s.get(func(f stateFile) {
		if f.Port != 20001 || len(f.Denied["nas"]) != 1 {
			t.Errorf("got %+v", f)
		}
	})
}

func TestADamagedStateIsNamedAndKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "daemon")
	if err := os.WriteFile(path, []byte(`{"denied":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openState(path); failureOf(err).Exit != ExitUsage {
		t.Errorf("got %v, want a usage failure: a deny that cannot be read is no allow", err)
	}
	if data, _ := os.ReadFile(path); string(data) != `{"denied":` {
		t.Errorf("the file was changed to %q", data)
	}
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"port":20001,"denied":{"nas":["tag:ops"]}}`))
	f.Add([]byte(`{"denier":{}}`))
	path := filepath.Join(f.TempDir(), "daemon")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := openState(path)
		if err != nil {
			return
		}
		if err := s.change(func(*stateFile) {}); err != nil {
			t.Fatal(err)
		}
		if _, err := openState(path); err != nil {
			t.Fatalf("%q does not read back: %v", data, err)
		}
	})
}
