package main

import (
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"
)

// upstream is the specification as a set of plain descriptors, fresh for every case, imports first.
func upstream() (*descriptorpb.FileDescriptorSet, *descriptorpb.FileDescriptorProto) {
	file := csi.File_csi_proto
	set := &descriptorpb.FileDescriptorSet{}
	for _, dependency := range items(file.Imports()) {
		set.File = append(set.File, protodesc.ToFileDescriptorProto(dependency))
	}
	ours := protodesc.ToFileDescriptorProto(file)
	set.File = append(set.File, ours)
	return set, ours
}

func differences(t *testing.T, set *descriptorpb.FileDescriptorSet) []string {
	t.Helper()
	bytes, err := proto.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	file, err := parse(bytes)
	if err != nil {
		t.Fatal(err)
	}
	return diff(factsOf(file), factsOf(csi.File_csi_proto))
}

func message(file *descriptorpb.FileDescriptorProto, name string) *descriptorpb.DescriptorProto {
	for _, candidate := range file.MessageType {
		if candidate.GetName() == name {
			return candidate
		}
	}
	panic(name)
}

func field(file *descriptorpb.FileDescriptorProto, of, name string) *descriptorpb.FieldDescriptorProto {
	for _, candidate := range message(file, of).Field {
		if candidate.GetName() == name {
			return candidate
		}
	}
	panic(name)
}

func service(file *descriptorpb.FileDescriptorProto, name string) *descriptorpb.ServiceDescriptorProto {
	for _, candidate := range file.Service {
		if candidate.GetName() == name {
			return candidate
		}
	}
	panic(name)
}

func TestTheSpecificationEqualsItself(t *testing.T) {
	set, _ := upstream()
	if lines := differences(t, set); len(lines) != 0 {
		t.Fatal(lines)
	}
}

// Each row breaks one thing; the comparison must name it.
func TestEveryKindOfDifferenceIsSeen(t *testing.T) {
	type file = *descriptorpb.FileDescriptorProto
	cases := map[string]struct {
		breaks func(file)
		named  string
	}{
		"field renamed": {func(f file) { field(f, "Volume", "volume_id").Name = proto.String("id") },
			"field csi.v1.Volume.volume_id: missing"},
		"field renumbered": {func(f file) { field(f, "Volume", "volume_id").Number = proto.Int32(9) },
			"field csi.v1.Volume.volume_id:"},
		"field of another type": {func(f file) {
			field(f, "Volume", "capacity_bytes").Type = descriptorpb.FieldDescriptorProto_TYPE_UINT64.Enum()
		}, "field csi.v1.Volume.capacity_bytes:"},
		"field of another message": {func(f file) {
			field(f, "CreateVolumeResponse", "volume").TypeName = proto.String(".csi.v1.Snapshot")
		}, "field csi.v1.CreateVolumeResponse.volume:"},
		"field of another label": {func(f file) {
			field(f, "Volume", "volume_id").Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
		}, "field csi.v1.Volume.volume_id:"},
		"field dropped": {func(f file) { m := message(f, "Volume"); m.Field = m.Field[1:] },
			"field csi.v1.Volume.capacity_bytes: missing"},
		"field added": {func(f file) {
			extra := proto.Clone(field(f, "Volume", "volume_id")).(*descriptorpb.FieldDescriptorProto)
			extra.Name, extra.Number, extra.JsonName = proto.String("extra"), proto.Int32(77), proto.String("extra")
			m := message(f, "Volume")
			m.Field = append(m.Field, extra)
		}, "field csi.v1.Volume.extra: not in the specification"},
		"field out of its oneof": {func(f file) { field(f, "VolumeCapability", "block").OneofIndex = nil },
			"oneof csi.v1.VolumeCapability.access_type:"},
		"oneof renamed": {func(f file) { message(f, "VolumeCapability").OneofDecl[0].Name = proto.String("kind") },
			"oneof csi.v1.VolumeCapability.access_type: missing"},
		"secret unmarked": {func(f file) { field(f, "CreateVolumeRequest", "secrets").Options = nil },
			"field csi.v1.CreateVolumeRequest.secrets:"},
		"secret marked where there is none": {func(f file) {
			options := &descriptorpb.FieldOptions{}
			proto.SetExtension(options, csi.E_CsiSecret, true)
			field(f, "Volume", "volume_id").Options = options
		}, "field csi.v1.Volume.volume_id:"},
		"alpha mark lost": {func(f file) { message(f, "VolumeCondition").Options = nil },
			"message csi.v1.VolumeCondition:"},
		"extension renumbered": {func(f file) { f.Extension[0].Number = proto.Int32(1061) }, "extension csi.v1."},
		"enum value renumbered": {func(f file) { f.EnumType[0].Value[1].Number = proto.Int32(5) },
			"value csi.v1.BlockMetadataType/FIXED_LENGTH:"},
		"enum value dropped": {func(f file) { f.EnumType[0].Value = f.EnumType[0].Value[:2] },
			"value csi.v1.BlockMetadataType/VARIABLE_LENGTH: missing"},
		"message dropped": {func(f file) {
			f.Service = f.Service[:1]
			f.MessageType = f.MessageType[:len(f.MessageType)-1]
		}, "message csi.v1.GetMetadataDeltaResponse: missing"},
		"message added": {func(f file) {
			f.MessageType = append(f.MessageType, &descriptorpb.DescriptorProto{Name: proto.String("Extra")})
		}, "message csi.v1.Extra: not in the specification"},
		"method dropped": {func(f file) { s := service(f, "Node"); s.Method = s.Method[1:] },
			"method csi.v1.Node.NodeStageVolume: missing"},
		"method no longer streaming": {func(f file) {
			service(f, "SnapshotMetadata").Method[0].ServerStreaming = nil
		}, "method csi.v1.SnapshotMetadata.GetMetadataAllocated:"},
		"method with another answer": {func(f file) {
			service(f, "Node").Method[0].OutputType = proto.String(".csi.v1.ProbeResponse")
		}, "method csi.v1.Node.NodeStageVolume:"},
		"service dropped": {func(f file) { f.Service = f.Service[1:] }, "service csi.v1.Identity: missing"},
		"service renamed": {func(f file) { service(f, "Node").Name = proto.String("Nodes") },
			"service csi.v1.Nodes: not in the specification"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			set, ours := upstream()
			c.breaks(ours)
			all := strings.Join(differences(t, set), "\n")
			if !strings.Contains(all, c.named) {
				t.Fatalf("want a difference that names %q, got:\n%s", c.named, all)
			}
		})
	}
}
